"""What a step costs, why, and how the cost grows: ``sibp bench step|scaling|roofline|revisions|time_to_target``.

Every command writes its measurements to a JSON record (`measure`), and makes tables and pictures from that record
(`sections`).
"""
