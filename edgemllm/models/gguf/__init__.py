"""Models in GGUF, llama.cpp's file format: read a tensor at a time into the dtype or quantisation asked for."""
