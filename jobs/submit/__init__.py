"""Jobs on a Ray cluster that runs: what is packed, who is asked, what is watched."""
