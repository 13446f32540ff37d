"""What is on disk under data_dir and survives a restart."""
