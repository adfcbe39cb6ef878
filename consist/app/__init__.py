"""The page of ``consist app``: looking at what the commands draw, and asking for more.

It draws with the very functions of the command line, and adds no other way of doing anything.
"""
