"""Measuring: interleaved rounds against peers, confidence intervals, the machine's FMA peak, plots."""
