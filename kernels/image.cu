/* Views of images of any size, as bytes: antialiased bilinear resizing and mirroring, for data sets that do
 * not live on the device. What comes out is what tn_view_make and a flip of src/data make, bit for bit, and
 * is input of augment.cu, which normalises and mixes.
 *
 * Two passes, columns first, each rounded to 8 bits as Pillow's are. The weights are 22-bit fixed point
 * numbers that the host has computed (tn_resize_plan of src/data/resize.h): sums of integers, so that nothing
 * depends on their order. `middle` holds, image after image, the rows of the source at the width of the view.
 *
 * Outputs are overwritten, nothing aliases. */
#include "kernels/device.cuh"

#define RESIZE_BITS 22

/* A weighted sum of bytes, rounded; weights add up to 1 within a few units, so that it cannot be negative. */
__device__ __forceinline__ uint8_t blend(const int *__restrict__ weights, int taps,
                                         const uint8_t *__restrict__ from, unsigned step) {
    int sum = 1 << (RESIZE_BITS - 1);
    for (int t = 0; t < taps; t++, from += step) sum += weights[t] * *from;
    return (uint8_t)min(sum >> RESIZE_BITS, 255);
}

/* blockIdx.y is the image; a thread makes one byte of `middle`. */
static __global__ void __launch_bounds__(THREADS)
    columns_kernel(const tn_view_image *__restrict__ images, int width, const uint8_t *__restrict__ bytes,
                   uint8_t *__restrict__ middle) {
    const tn_view_image image = images[blockIdx.y];
    const int *plan = reinterpret_cast<const int *>(bytes + image.columns);
    const uint8_t *pixels = bytes + image.pixels;
    const unsigned row = 3 * (unsigned)width, count = (unsigned)image.height * row;
    const unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return; /* of an image that is not the highest */
    const unsigned y = i / row, x = i % row / 3, channel = i % 3;
    const int *p = plan + (size_t)x * (2 + image.column_taps);
    middle[image.middle + i] = blend(p + 2, p[1], pixels + ((size_t)y * image.width + p[0]) * 3 + channel, 3);
}

/* A thread makes one byte of a view. */
static __global__ void __launch_bounds__(THREADS)
    rows_kernel(const tn_view_image *__restrict__ images, int height, int width,
                const uint8_t *__restrict__ bytes, const uint8_t *__restrict__ middle,
                uint8_t *__restrict__ views) {
    const tn_view_image image = images[blockIdx.y];
    const int *plan = reinterpret_cast<const int *>(bytes + image.rows);
    const unsigned row = 3 * (unsigned)width, count = (unsigned)height * row;
    const unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    const unsigned y = i / row, x = i % row / 3, channel = i % 3;
    const unsigned from = 3 * (image.flip ? width - 1 - x : x) + channel;
    const int *p = plan + (size_t)y * (2 + image.row_taps);
    views[(size_t)blockIdx.y * count + i] =
        blend(p + 2, p[1], middle + image.middle + (size_t)p[0] * row + from, row);
}

cudaError_t tn_launch_views(int count, const tn_view_image *images, int highest, int height, int width,
                            const uint8_t *bytes, uint8_t *middle, uint8_t *views, cudaStream_t stream) {
    if (count < 0 || count > 65535 || highest < 1 || height < 1 || width < 1 ||
        too_large((size_t)(highest > height ? highest : height), 3 * (size_t)width))
        return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    const dim3 columns(blocks_for(3 * (unsigned)width * (unsigned)highest), (unsigned)count);
    const dim3 rows(blocks_for(3 * (unsigned)width * (unsigned)height), (unsigned)count);
    TN_LAUNCH(columns_kernel, columns, THREADS, 0, stream, images, width, bytes, middle);
    TN_LAUNCH(rows_kernel, rows, THREADS, 0, stream, images, height, width, bytes, middle, views);
    return cudaGetLastError();
}
