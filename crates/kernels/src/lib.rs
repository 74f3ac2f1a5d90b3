//! Arithmetic on quantized blocks, one implementation per instruction set, chosen at run time.
