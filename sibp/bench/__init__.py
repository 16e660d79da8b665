"""What a step costs, why, and how the cost grows: ``sibp bench step|scaling|roofline|revisions|time_to_target``.

Every command measures into a JSON record (`measure`), and makes its tables and pictures from that record alone
(`sections`).
"""
