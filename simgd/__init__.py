"""Which schedule of gradient descent is fastest, by how much, and what does it cost?"""

__version__ = "0.5.0"
