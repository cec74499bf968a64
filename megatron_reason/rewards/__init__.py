"""Was it right? One file is one reward; the answer is a Verdict, not a float."""
