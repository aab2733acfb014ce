"""Streams: a video that does not end, in a key/value cache that does not grow.

`watch` is what users call; `compress.stream.memories` holds the memory policies, and
`positions.policies` those of positions.
"""
