"""Reading archives: the container, the decoder, the members; one format a file."""
