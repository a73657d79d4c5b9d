// The Python module pyassemble._native: converts and checks arguments, releases the GIL, calls the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "align.hpp"
#include "copying.hpp"
#include "dispatch.hpp"
#include "rates.hpp"
#include "recurrence.hpp"
#include "sequence.hpp"
#include "zoo.hpp"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using pyassemble::Arithmetic;
using pyassemble::Meter;
using pyassemble::Pair;
using pyassemble::Sequence;
using pyassemble::Workspace;

void check_signals(void*) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

Workspace make_workspace() { return Workspace(pyassemble::active_kernels(), Meter(check_signals, nullptr)); }

struct Kind {
    char code;
    int itemsize;
};

// Copies any strided, even unaligned array: what is computed on later cannot change under our hands.
template <class T>
std::vector<T> copy_array(py::handle object, int ndim, std::initializer_list<Kind> kinds, const std::string& expected) {
    if (!py::isinstance<py::array>(object)) throw py::type_error(expected);
    const auto array = py::reinterpret_borrow<py::array>(object);
    const py::dtype dtype = array.dtype();
    bool known = array.ndim() == ndim && dtype.attr("isnative").cast<bool>();
    if (known) {
        known = false;
        for (const Kind kind : kinds) known |= dtype.kind() == kind.code && dtype.itemsize() == kind.itemsize;
    }
    if (!known) throw py::type_error(expected);
    std::vector<T> out(static_cast<std::size_t>(array.size()));
    const auto* data = static_cast<const char*>(array.data());
    const py::ssize_t columns = ndim == 2 ? array.shape(1) : array.shape(0);
    const py::ssize_t step = array.strides(ndim - 1);
    for (std::size_t x = 0, row = 0; x < out.size(); ++row) {
        const char* p = data + (ndim == 2 ? static_cast<py::ssize_t>(row) * array.strides(0) : 0);
        if (step == static_cast<py::ssize_t>(sizeof(T))) {
            std::memcpy(out.data() + x, p, static_cast<std::size_t>(columns) * sizeof(T));
            x += static_cast<std::size_t>(columns);
        } else {
            for (py::ssize_t c = 0; c < columns; ++c, ++x) std::memcpy(&out[x], p + c * step, sizeof(T));
        }
    }
    return out;
}

Sequence make_sequence(py::handle kinds, py::handle size_offsets, py::handle sizes, py::handle element_offsets, py::handle is_block) {
    const auto int64 = [](py::handle object, const char* name) {
        return copy_array<std::int64_t>(object, 1, {{'i', 8}}, std::string(name) + " must be a one-dimensional int64 array");
    };
    const auto k = copy_array<std::int32_t>(kinds, 1, {{'i', 4}}, "kinds must be a one-dimensional int32 array");
    const auto so = int64(size_offsets, "size_offsets");
    const auto s = int64(sizes, "sizes");
    const auto eo = int64(element_offsets, "element_offsets");
    const auto b = copy_array<std::uint8_t>(is_block, 1, {{'b', 1}, {'u', 1}}, "is_block must be a one-dimensional bool or uint8 array");
    return Sequence(Sequence::Arrays{k, so, s, eo, b});
}

const Sequence& to_sequence(py::handle object, const char* name) {
    if (!py::isinstance<Sequence>(object))
        throw py::type_error(std::string(name) + " must be a Sequence, not " +
                             py::type::of(object).attr("__name__").cast<std::string>());
    return object.cast<const Sequence&>();
}

struct Scores {
    std::vector<double> values;
    std::int32_t targets, sources;
};

Scores to_scores(py::handle object) {
    Scores scores;
    scores.values = copy_array<double>(object, 2, {{'f', 8}}, "scores must be a two-dimensional float64 array");
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (array.shape(0) >= INT32_MAX || array.shape(1) >= INT32_MAX) throw py::value_error("too many scores");
    scores.targets = static_cast<std::int32_t>(array.shape(0));
    scores.sources = static_cast<std::int32_t>(array.shape(1));
    for (const double value : scores.values)
        if (!(value >= 0.0) || std::isinf(value)) throw py::value_error("scores must be finite and not negative");
    return scores;
}

py::tuple to_python(double value, const std::vector<Pair>& pairs) {
    const auto count = static_cast<py::ssize_t>(pairs.size());
    py::array_t<std::int32_t> sources(count);
    py::array_t<std::int32_t> targets(count);
    std::int32_t* s = sources.mutable_data();
    std::int32_t* t = targets.mutable_data();
    for (const Pair pair : pairs) {
        *s++ = pair.source;
        *t++ = pair.target;
    }
    return py::make_tuple(value, sources, targets);
}

py::tuple align(py::handle source, py::handle target) {
    const Sequence& s = to_sequence(source, "source");
    const Sequence& t = to_sequence(target, "target");
    pyassemble::Alignment alignment;
    {
        const py::gil_scoped_release release;
        Workspace workspace = make_workspace();
        alignment = pyassemble::align(s, t, workspace);
    }
    return to_python(alignment.score, alignment.pairs);
}

double score(py::handle source, py::handle target) {
    const Sequence& s = to_sequence(source, "source");
    const Sequence& t = to_sequence(target, "target");
    const py::gil_scoped_release release;
    Workspace workspace = make_workspace();
    return pyassemble::score(s, t, workspace);
}

py::array_t<double> score_matrix(py::handle source, py::handle target) {
    const Sequence& s = to_sequence(source, "source");
    const Sequence& t = to_sequence(target, "target");
    py::array_t<double> out({static_cast<py::ssize_t>(t.elements().size()), static_cast<py::ssize_t>(s.elements().size())});
    double* data = out.mutable_data();
    const py::gil_scoped_release release;
    Workspace workspace = make_workspace();
    pyassemble::score_matrix(s, t, workspace, data);
    return out;
}

py::tuple recurrence(py::handle matrix) {
    const Scores scores = to_scores(matrix);
    std::vector<Pair> pairs;
    double value = 0.0;
    {
        const py::gil_scoped_release release;
        Workspace workspace = make_workspace();
        value = solve_pairs(dense_problem(scores.values.data(), scores.targets, scores.sources, workspace), workspace, pairs);
    }
    return to_python(value, pairs);
}

double recurrence_value(py::handle matrix) {
    const Scores scores = to_scores(matrix);
    const py::gil_scoped_release release;
    Workspace workspace = make_workspace();
    return solve(dense_problem(scores.values.data(), scores.targets, scores.sources, workspace), Arithmetic::fast, workspace);
}

double fma_rate(double seconds) {
    const py::gil_scoped_release release;
    Workspace workspace = make_workspace();
    return pyassemble::multiply_add_rate(seconds, workspace);
}

double recurrence_rate(std::int32_t n, std::int32_t m, bool exact, double seconds) {
    if (n < 1 || m < 1) throw py::value_error("n and m must be positive");
    const py::gil_scoped_release release;
    Workspace workspace = make_workspace();
    return pyassemble::recurrence_rate(n, m, exact ? Arithmetic::exact : Arithmetic::fast, seconds, workspace);
}

// Addresses come as Python integers: the caller vouches for what lies there, as with every function that takes pointers.
std::byte* to_pointer(py::handle address) { return reinterpret_cast<std::byte*>(address.cast<std::uintptr_t>()); }

pyassemble::Format to_format(py::handle dtype) {
    using enum pyassemble::Format;
    const auto name = dtype.cast<std::string_view>();
    if (name == "float32") return float32;
    if (name == "int64") return int64;
    if (name == "float64") return float64;
    if (name == "bfloat16") return bfloat16;
    if (name == "float16") return float16;
    throw py::value_error("dtype must be float16, bfloat16, float32, float64 or int64, not " + std::string(name));
}

// Sizes of a shape in `room`, which is reused from tensor to tensor.
std::span<const std::int64_t> to_sizes(py::handle shape, std::vector<std::int64_t>& room) {
    if (!py::isinstance<py::tuple>(shape)) throw py::type_error("shapes must be tuples of integers");
    room.clear();
    for (const py::handle size : py::reinterpret_borrow<py::tuple>(shape)) room.push_back(size.cast<std::int64_t>());
    return room;
}

pyassemble::Copies make_copies(const py::list& sources, const py::list& targets, const py::list& source_shapes, const py::list& target_shapes,
                               const py::list& dtypes) {
    const std::size_t count = sources.size();
    if (targets.size() != count || source_shapes.size() != count || target_shapes.size() != count || dtypes.size() != count)
        throw py::value_error("sources, targets, source_shapes, target_shapes and dtypes must be equally long");
    pyassemble::Copies copies;
    std::vector<std::int64_t> source_shape, target_shape;
    for (std::size_t i = 0; i < count; ++i)
        copies.add(pyassemble::Crop::centre(to_sizes(source_shapes[i], source_shape), to_sizes(target_shapes[i], target_shape)),
                   to_pointer(sources[i]), to_pointer(targets[i]), to_format(dtypes[i]));
    return copies;
}

py::list saved_starts(const pyassemble::Copies& copies) {
    py::list starts;
    for (const pyassemble::Copy& copy : copies.all()) starts.append(copy.saved);
    return starts;
}

std::size_t save_and_write(const pyassemble::Copies& copies, py::handle saved, py::list done, unsigned workers) {
    std::byte* place = to_pointer(saved);
    if (reinterpret_cast<std::uintptr_t>(place) % pyassemble::Copies::kAlignment != 0)
        throw py::value_error("the place of saving must start on a multiple of 64 bytes");
    std::size_t written = 0;
    {
        const py::gil_scoped_release release;
        written = copies.save_and_write(place, workers);
    }
    if (written == copies.all().size()) done.append(true);
    return written;
}

std::size_t first_nonfinite(const py::list& addresses, const py::list& counts, const py::str& dtype) {
    const pyassemble::Format format = to_format(dtype);
    if (addresses.size() != counts.size()) throw py::value_error("addresses and counts must be equally long");
    std::vector<pyassemble::Numbers> arrays(addresses.size());
    for (std::size_t i = 0; i < arrays.size(); ++i) arrays[i] = {to_pointer(addresses[i]), counts[i].cast<std::size_t>()};
    const py::gil_scoped_release release;
    return pyassemble::first_nonfinite(arrays, format);
}

// A span over a contiguous one-dimensional array of exactly this type; the array must outlive it.
template <class T>
std::span<const T> to_span(const py::array_t<T, py::array::c_style>& array, const char* name) {
    if (array.ndim() != 1) throw py::value_error(std::string(name) + " must be one-dimensional");
    return {array.data(), static_cast<std::size_t>(array.size())};
}

template <class T>
using Column = py::array_t<T, py::array::c_style>;

// Several threads may compare at once; one that extends waits for them.
struct SharedZoo {
    pyassemble::Zoo zoo;
    std::shared_mutex mutex;
};

void extend(SharedZoo& shared, const Column<std::int32_t>& layer_kinds, const Column<std::int64_t>& size_offsets, const Column<std::int64_t>& sizes,
            const Column<std::int64_t>& block_offsets, const Column<std::int32_t>& block_layers, const Column<std::int64_t>& network_offsets,
            const Column<std::int32_t>& network_elements) {
    std::unique_lock lock(shared.mutex, std::defer_lock);
    {
        // Those who hold the lock need the GIL now and then, to look for signals.
        const py::gil_scoped_release release;
        lock.lock();
    }
    shared.zoo.extend({to_span(layer_kinds, "layer_kinds"), to_span(size_offsets, "size_offsets"), to_span(sizes, "sizes"),
                       to_span(block_offsets, "block_offsets"), to_span(block_layers, "block_layers"), to_span(network_offsets, "network_offsets"),
                       to_span(network_elements, "network_elements")});
}

pyassemble::Run make_run(unsigned workers) {
    if (workers < 1) throw py::value_error("workers must be at least 1");
    constexpr unsigned kMost = 1024;  // each has scratch memory of its own
    return {std::min(workers, kMost), check_signals, nullptr};
}

void directed_rows(SharedZoo& shared, std::int32_t first, std::int32_t last, py::array_t<double> out, std::size_t memory, unsigned workers) {
    const pyassemble::Run run = make_run(workers);
    const bool matrix = out.ndim() == 2 && (out.flags() & py::array::c_style) != 0;
    const std::int64_t rows = matrix ? out.shape(0) : -1;
    const std::int64_t columns = matrix ? out.shape(1) : -1;
    double* data = out.mutable_data();
    const py::gil_scoped_release release;
    const std::shared_lock lock(shared.mutex);
    if (first < 0 || last < first || last > shared.zoo.size()) throw py::index_error("rows must lie within the zoo");
    if (rows != last - first || columns != shared.zoo.size())
        throw py::value_error("out must be a C-contiguous float64 array of shape (last - first, networks)");
    shared.zoo.directed_rows(first, last, data, memory, run);
}

py::tuple nearest(SharedZoo& shared, py::handle query, std::size_t k, bool symmetric, unsigned workers) {
    const Sequence& sequence = to_sequence(query, "query");
    const pyassemble::Run run = make_run(workers);
    std::vector<pyassemble::Neighbour> found;
    std::size_t aligned = 0;
    {
        const py::gil_scoped_release release;
        const std::shared_lock lock(shared.mutex);
        found = shared.zoo.nearest(sequence, k, symmetric ? pyassemble::Similarity::symmetric : pyassemble::Similarity::directed, run, &aligned);
    }
    py::array_t<std::int32_t> networks(static_cast<py::ssize_t>(found.size()));
    py::array_t<double> similarities(static_cast<py::ssize_t>(found.size()));
    for (std::size_t i = 0; i < found.size(); ++i) {
        networks.mutable_data()[i] = found[i].network;
        similarities.mutable_data()[i] = found[i].similarity;
    }
    return py::make_tuple(networks, similarities, aligned);
}

std::string repr(const Sequence& sequence) {
    return "<Sequence of " + std::to_string(sequence.num_layers()) + " layers in " + std::to_string(sequence.elements().size()) +
           " elements, " + std::to_string(sequence.num_scored()) + " scored>";
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Alignment of layer sequences (DPIAT, arXiv 2212.13970): the compiled core. Same functions as pyassemble.kernels.recurrence.";
    m.attr("__version__") = PYASSEMBLE_VERSION;

    py::class_<Sequence>(m, "Sequence", py::is_final())
        .def(py::init(&make_sequence), "kinds"_a, "size_offsets"_a, "sizes"_a, "element_offsets"_a, "is_block"_a)
        .def_property_readonly("num_layers", &Sequence::num_layers)
        .def_property_readonly("num_elements", [](const Sequence& s) { return s.elements().size(); })
        .def_property_readonly("num_scored", &Sequence::num_scored)
        .def("__repr__", &repr);

    m.def("align", &align, "source"_a, "target"_a, "D(source, target) and the pairs of layers, in target order.");
    m.def("score", &score, "source"_a, "target"_a, "D(source, target) alone, in any order of operations.");
    m.def("score_matrix", &score_matrix, "source"_a, "target"_a, "Scores between top-level elements, row = target.");
    m.def("recurrence", &recurrence, "scores"_a, "One level of the recurrence on a matrix of scores, row = target.");
    m.def("recurrence_value", &recurrence_value, "scores"_a, "Its value alone, in any order of operations.");

    py::class_<SharedZoo>(m, "Zoo", py::is_final(), "Many networks. Safe to use from several threads.")
        .def(py::init<>())
        .def("extend", &extend, "layer_kinds"_a.noconvert(), "size_offsets"_a.noconvert(), "sizes"_a.noconvert(), "block_offsets"_a.noconvert(),
             "block_layers"_a.noconvert(), "network_offsets"_a.noconvert(), "network_elements"_a.noconvert(), "Adds layers, blocks and networks.")
        .def("__len__", [](const SharedZoo& shared) { return shared.zoo.size(); })
        .def("scored", [](const SharedZoo& shared, std::int32_t network) { return shared.zoo.scored(network); }, "network"_a,
             "Number of its scored layers.")
        .def("directed_rows", &directed_rows, "first"_a, "last"_a, "out"_a.noconvert(), "memory"_a, "workers"_a,
             "out[i - first, j] = directed(network j -> network i).")
        .def("nearest", &nearest, "query"_a, "k"_a, "symmetric"_a, "workers"_a,
             "Numbers and similarities of the k nearest networks, and how many were aligned to find them.");
    py::class_<pyassemble::Copies>(m, "Copies", py::is_final(),
                                   "Centre crops of many dense arrays onto as many others (SPEC 1.5), by address: made together, or not at all.")
        .def(py::init(&make_copies), "sources"_a, "targets"_a, "source_shapes"_a, "target_shapes"_a, "dtypes"_a)
        .def("__len__", [](const pyassemble::Copies& copies) { return copies.all().size(); })
        .def_property_readonly("elements", &pyassemble::Copies::elements, "Number of elements that they write.")
        .def_property_readonly("saved_bytes", &pyassemble::Copies::saved_bytes, "Room that is needed to save what they overwrite.")
        .def_property_readonly("saved_starts", &saved_starts, "Where in that room what each overwrites is saved, in bytes from its start.")
        .def("disjoint", &pyassemble::Copies::disjoint, "Whether no two targets share memory, and no target shares any with a source.")
        .def("save_and_write", &save_and_write, "saved"_a, "done"_a, "workers"_a,
             "Saves what each target region holds and writes the source region into it. Returns the position of a copy whose source holds a NaN "
             "or an infinity, with all targets as they were, or the number of copies; then it appends True to `done`: an interrupt may come "
             "between this call and the caller's next step. Copies must be disjoint. The result does not depend on the number of workers.");
    m.def("first_nonfinite", &first_nonfinite, "addresses"_a, "counts"_a, "dtype"_a,
          "Index of the first array with a NaN or an infinity, or the number of arrays.");

    m.def(
        "instruction_sets",
        [] {
            std::vector<std::string> names;
            for (const pyassemble::Kernels* kernels : pyassemble::available_kernels()) names.emplace_back(kernels->name);
            return names;
        },
        "What this processor and build offer, narrowest first.");
    m.def("instruction_set", [] { return std::string(pyassemble::active_kernels().name); }, "The one in use.");
    m.def("use_instruction_set", &pyassemble::activate_kernels, "name"_a, "Use this one from now on, in every thread.");
    m.def("fma_rate", &fma_rate, "seconds"_a = 0.2, "Measured float64 multiply-adds per second on one core.");
    m.def("recurrence_rate", &recurrence_rate, "n"_a, "m"_a, "exact"_a, "seconds"_a = 0.2,
          "Measured cells per second on a dense random matrix: n (n + 1) / 2 * m cells each time.");
}
