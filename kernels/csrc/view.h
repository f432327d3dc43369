// An array of Python's, on the CPU (numpy) or on a CUDA device, as one description.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace medisseg {

namespace py = pybind11;

// Memory of a CUDA device as kernels/arrays.py describes it; `owner` keeps it alive.
struct DeviceArray {
  uintptr_t pointer;
  std::string dtype;            // numpy's name
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // bytes
  py::object owner;
};

struct View {
  const char* name = "";  // of the argument, for messages
  void* data = nullptr;
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // bytes
  bool writable = true;
  bool on_device = false;

  int dimensions() const { return static_cast<int>(shape.size()); }
  // Sides of one element may have any stride.
  bool stride_is(int axis, int64_t bytes) const { return shape[axis] == 1 || strides[axis] == bytes; }
  int64_t item_size() const;
  bool contiguous() const;
  std::string describe() const;

  // "frame is ...; expected ..."
  [[noreturn]] void wrong(const std::string& expected) const;
};

// Throws TypeError for anything but an array of one of the dtypes ("uint8|bool").
View view_of(const py::object& object, const char* name, const std::string& dtypes);

// "str 'abc'", for messages about things that are no arrays.
std::string describe(const py::handle& object);

}  // namespace medisseg
