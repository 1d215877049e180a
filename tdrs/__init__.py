"""tdrs: does this inference-time edit of a vision-language model's attention help, and how sure are we?"""

from tdrs.attention.intervene import intervene
from tdrs.interventions.none import Stock
from tdrs.interventions.tdrs import DC, RE, TDRS

__all__ = ["DC", "RE", "TDRS", "Stock", "intervene"]
__version__ = "0.1.0"
