"""What `livepeer-ray demo` sends and shows; the command itself is `cluster.commands.demo`.

samples.py   the requests
inputs.py    the picture and the sound that they work on
gateway.py   sends one, as a gateway's caller does, and keeps what comes back
masks.py     the masks of segment-anything-2, drawn over the picture
page.py      index.html
"""
