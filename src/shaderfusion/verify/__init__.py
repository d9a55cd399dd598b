"""`shaderfusion verify`: does a user's copy of a published model give the numbers that diffusers publishes for it?"""
