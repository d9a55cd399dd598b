"""A model as static files that a page in any browser with WebGPU runs (docs/browser.md)."""
