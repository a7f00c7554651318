"""What shoal is compared with: programs that compute with torch themselves, each run in processes of its own."""
