#include "view.h"

namespace medisseg {
namespace {

std::string text(const std::vector<int64_t>& values) {
  std::string out = "(";
  for (size_t i = 0; i < values.size(); ++i) out += (i ? ", " : "") + std::to_string(values[i]);
  return out + ")";
}

bool is_one_of(const std::string& dtype, const std::string& dtypes) {
  return ("|" + dtypes + "|").find("|" + dtype + "|") != std::string::npos;
}

View from_numpy(const py::array& a) {
  View view;
  view.data = const_cast<void*>(a.data());
  // str() of a type in the other byte order is ">f4", which is none that we read.
  view.dtype = std::string(py::str(a.dtype()));
  view.shape.assign(a.shape(), a.shape() + a.ndim());
  view.strides.assign(a.strides(), a.strides() + a.ndim());
  view.writable = a.writeable();
  return view;
}

View from_device(const DeviceArray& a) {
  View view;
  view.data = reinterpret_cast<void*>(a.pointer);
  view.dtype = a.dtype;
  view.shape = a.shape;
  view.strides = a.strides;
  view.on_device = true;
  return view;
}

}  // namespace

int64_t View::item_size() const {
  if (dtype == "float32" || dtype == "int32") return 4;
  return dtype == "float16" ? 2 : 1;
}

bool View::contiguous() const {
  int64_t bytes = item_size();
  for (int axis = dimensions() - 1; axis >= 0; --axis) {
    if (!stride_is(axis, bytes)) return false;
    bytes *= shape[axis];
  }
  return true;
}

std::string View::describe() const {
  return dtype + " " + text(shape) + " with strides " + text(strides) +
         (on_device ? " on a GPU" : "");
}

void View::wrong(const std::string& expected) const {
  throw py::value_error(std::string(name) + " is " + describe() + "; expected " + expected);
}

std::string describe(const py::handle& object) {
  const std::string type = Py_TYPE(object.ptr())->tp_name;
  // Only small, plain values are shown: another object's repr may be long, slow, or fail.
  if (py::isinstance<py::tuple>(object)) return type + " of " + std::to_string(py::len(object));
  if (!py::isinstance<py::str>(object) && !PyNumber_Check(object.ptr())) return type;
  if (py::hasattr(object, "__array__")) return type;
  return type + " " + std::string(py::str(py::repr(object))).substr(0, 60);
}

View view_of(const py::object& object, const char* name, const std::string& dtypes) {
  View view;
  if (py::isinstance<py::array>(object)) {
    view = from_numpy(py::reinterpret_borrow<py::array>(object));
  } else if (py::isinstance<DeviceArray>(object)) {
    view = from_device(object.cast<const DeviceArray&>());
  } else {
    throw py::type_error(std::string(name) + " is " + describe(object) + "; expected an array of " +
                         dtypes);
  }
  view.name = name;
  if (!is_one_of(view.dtype, dtypes)) {
    throw py::type_error(std::string(name) + " is " + view.describe() + "; expected " + dtypes);
  }
  if (view.shape.size() != view.strides.size() || view.data == nullptr) {
    view.wrong("memory that is there, with a stride for each side");
  }
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(view.item_size()) != 0) {
    view.wrong("aligned elements; pass a copy");
  }
  return view;
}

}  // namespace medisseg
