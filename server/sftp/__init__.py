"""A read-only SFTP server over a list of files; knows neither ledger nor Megaphone."""
