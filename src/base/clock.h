/* Monotonic time for measurements. */
#ifndef TN_BASE_CLOCK_H
#define TN_BASE_CLOCK_H

/* Seconds since an arbitrary fixed point; never goes back. */
double tn_now(void);

#endif
