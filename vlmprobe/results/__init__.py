"""What a probe returns: tables of tokens, results and scores, and the files that they are saved in."""
