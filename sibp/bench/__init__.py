"""What a step costs, why, and how it grows: ``sibp bench step|scaling|roofline|revisions|runs|time_to_target``.

Every command writes its measurements to a JSON record (`measure`), and makes tables and pictures from that record
(`sections`).
"""
