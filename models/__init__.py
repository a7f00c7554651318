"""Mathematics: algorithms as frozen values, no files, no cluster."""
