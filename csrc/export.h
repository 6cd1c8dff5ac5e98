// What liblirank.so offers to a C or C++ caller besides the registered ops.
#pragma once
#include <cstdint>

#define LIRANK_EXPORT extern "C" __attribute__((visibility("default")))

LIRANK_EXPORT const char* lirank_isa_name();
