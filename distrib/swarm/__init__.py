"""The swarm: v2 torrents, the LAN profile, the libtorrent adapter, the relay plan."""

IMAGE_FILE = "image.raw"
"""The one file name in every torrent, and so in every directory that libtorrent writes to."""

TORRENT_FILE = "image.torrent"
"""The torrent with its piece layers, beside the image in the head's store."""
