"""From runs to records: medians, intervals, paired verdicts, performance profiles; no pages."""
