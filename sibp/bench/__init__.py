"""What a step costs, why, and how that grows: ``python -m sibp.bench step|scaling|roofline|time_to_target``.

Every command measures (`measure`) into a record that JSON can hold, and makes its tables and pictures (`sections`) from
that record alone.
"""
