"""This repository's own results: the paper's claims, their criteria, and the pages and pictures made from kept runs."""
