"""`shaderfusion batch`: many pictures of one model, by a file of jobs."""
