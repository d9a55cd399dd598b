"""What made a picture, inside the picture: written as web UIs and model sites read it, and read from theirs."""
