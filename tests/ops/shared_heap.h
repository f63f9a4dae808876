// Test objects in memory that a GPU can address: with DG_TEST_BACKEND set, operator new of this executable takes memory from one region,
// which share_heap_with_device() registers with the driver.
#pragma once

namespace dg::ops_table {

void share_heap_with_device();  // after the backend is made

}  // namespace dg::ops_table
