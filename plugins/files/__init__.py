"""What lies on the disk and may not be ours: files, folders of strangers, the installation. No
torch.

disk.py          files that appear whole or not at all; their hashes; the JSON in them
lines.py         the lines of a text file, which end at \\n alone, and the JSON in one of them
checkpoints.py   which checkpoints of a training are whole, and which is the newest
lock.py          a file that one process at a time holds
hub.py           folder or Hub id -> folder; new folders, which appear when they are complete
fingerprint.py   what tells the folder of a model from others, under any name
sizes.py         how large the entries of a stranger's config may be
temporary.py     folders for what others send, gone with their maker or at the next start
untrusted.py     entries of a checkpoint's files that let a library import, fetch or run something
installation.py  whether what we stand on can be imported, and the line that mends it
"""
