"""Folders of our own, on disks that others share."""
