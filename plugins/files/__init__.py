"""What lies on the disk and may not be ours: files, folders of strangers, the installation. No
torch.

disk.py          files that appear whole or not at all; their hashes; the JSON in them
hub.py           folder or Hub id -> folder; new folders, which appear when they are complete
temporary.py     folders for what others send, gone with their maker or at the next start
untrusted.py     entries of a checkpoint's files that let a library import, fetch or run something
installation.py  whether what we stand on can be imported, and the line that mends it
"""
