"""``udc serve``: decides images over HTTP, in batches of the requests that wait (extra ``[serve]``)."""
