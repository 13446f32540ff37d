"""A read-only SFTP server, asked by real clients and byte by byte."""
