/* Makes the library a Python module without contents, for tools that import every module; Python calls its functions by
 * ctypes. Python's headers are used where they are installed, but not needed. */
#if __has_include(<Python.h>)
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = 0};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
#endif

/* The checksum of the sources that this was built from. */
const char *sources(void) { return SOURCES; }
