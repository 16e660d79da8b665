"""From runs to records: medians, intervals, paired verdicts, performance profiles. No text for people, no pages."""
