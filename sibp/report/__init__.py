"""From records to a page that says who won, by how much and how surely.

``sibp report DIR...`` reads config.yaml, metrics.jsonl and summary.json of every run below the given folders and writes
one self-contained page. It never trains and never imports torch.
"""
