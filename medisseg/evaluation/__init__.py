"""Measuring, predicting and explaining: metrics, pages and the commands that use them."""
