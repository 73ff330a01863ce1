"""Graphs in words: names, sentences and tables."""
