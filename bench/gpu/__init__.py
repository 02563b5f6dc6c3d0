"""Checkpoint and resume of GPU memory, step by step, beside containerd's own two ways.

Three sides take the same container round by turns, on the same disk, in one run:

    bare            the driver's calls, containerd's dump into a folder of raw images, an fsync of
                    all of it, containerd's restore, the driver's calls: nothing can do with less
    content store   the driver's calls and containerd's own way (`ctr containers checkpoint`), which
                    packs the images into its content store; the way down only
    kybernate       two requests over REST, each watched to its end
"""
