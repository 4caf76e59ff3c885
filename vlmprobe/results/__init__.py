"""What a probe returns: token tables, results and scores, and the files that they are saved in."""
