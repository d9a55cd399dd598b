"""The five GPU-aware optimizations of Chen et al. 2023 (arXiv 2304.11267), and what each replaces in baseline/.

    group_norm               one dispatch, no tensor between                        group_norm_unfused
    geglu                    split, GELU and product in one dispatch, or in none    geglu_unfused
    partially_fused_softmax  writes (L, S), N x 2; the rest in the product with V   softmax_unfused
    flash_attention          online softmax, no N x M tensor at all                 softmax_unfused and both products
    winograd_conv            F(m x m, 3 x 3)                                        conv2d_direct

kernels/select.py says where each is used, docs/optimizations.md what it gains.
"""
