/* Mark what the loader calls; every other function stays hidden in the library. */
#ifndef NNBACKEND_EXPORT_H
#define NNBACKEND_EXPORT_H

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#endif
