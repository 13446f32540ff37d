"""pickup-point: Megaphone's daily exports, as Triton Digital's podcast logs, at an SFTP pickup point."""
