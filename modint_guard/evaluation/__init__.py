"""How a model is measured against interference: `diagnose`, `calibrate`, and the statistics behind them."""
