from onnxport.cli import main

main()
