"""Telling addresses outside of the lab that something has ended: which may be called, how, and when again."""
