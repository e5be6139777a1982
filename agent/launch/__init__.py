"""Launching a job in a guest: libvirt domain, context disc, supervision, run log."""
