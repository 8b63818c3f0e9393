"""``udc app``: a page on this machine that decides images under costs that can be changed, and reviews labels."""
